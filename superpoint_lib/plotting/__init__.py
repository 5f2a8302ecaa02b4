"""Pictures: functions that turn arrays into matplotlib figures or into RGB arrays.

``plot_*`` functions return a :class:`Picture`, a matplotlib figure that pyplot does not know of:
nothing has to be closed, nothing is drawn twice, and a notebook shows it when it is the last line
of a cell (or through ``display``). ``render_*`` functions draw with OpenCV and return a uint8 RGB
array; they are for pictures redrawn often (widgets) and for files written by the command line.

* ``style``: colours, sizes and :class:`Picture`;
* ``arrays``: what is drawn, brought into one form;
* ``render``: arrays drawn with OpenCV;
* ``images``: figures of images, keypoints, heatmaps and cells;
* ``pairs``: figures of matches and homographies;
* ``charts``: figures of numbers.

Arrays may be numpy arrays or tensors. Keypoints are (x, y) with pixel centres at integers.
"""

from superpoint_lib.plotting.arrays import Array, to_rgb
from superpoint_lib.plotting.charts import (
    History,
    Value,
    plot_bars,
    plot_curves,
    plot_differences,
    plot_hinge_loss,
    plot_history,
    plot_precision_recall,
)
from superpoint_lib.plotting.images import (
    draw_keypoints,
    plot_cells,
    plot_heatmap,
    plot_images,
    plot_keypoints,
)
from superpoint_lib.plotting.pairs import MatchedPair, plot_matches, plot_pairs, plot_warps
from superpoint_lib.plotting.render import (
    render_grid,
    render_heatmap,
    render_keypoints,
    render_matches,
)
from superpoint_lib.plotting.style import (
    COLORS,
    CORRECT,
    SCORE_COLORMAP,
    UNKNOWN,
    WIDTH,
    WRONG,
    Picture,
    new_figure,
    render_figure,
)

__all__ = [
    "COLORS",
    "CORRECT",
    "SCORE_COLORMAP",
    "UNKNOWN",
    "WIDTH",
    "WRONG",
    "Array",
    "History",
    "MatchedPair",
    "Picture",
    "Value",
    "draw_keypoints",
    "new_figure",
    "plot_bars",
    "plot_cells",
    "plot_curves",
    "plot_differences",
    "plot_heatmap",
    "plot_hinge_loss",
    "plot_history",
    "plot_images",
    "plot_keypoints",
    "plot_matches",
    "plot_pairs",
    "plot_precision_recall",
    "plot_warps",
    "render_figure",
    "render_grid",
    "render_heatmap",
    "render_keypoints",
    "render_matches",
    "to_rgb",
]
