"""The grid of cells in which the network's heads answer.

A cell is a square of 8 x 8 pixels, the three poolings of the encoder. Pixel (dx, dy) of a cell has
class dy * 8 + dx; the class after the last pixel, the dustbin, means that no pixel is a keypoint.
"""

CELL_SIZE = 8
DUSTBIN = CELL_SIZE * CELL_SIZE
