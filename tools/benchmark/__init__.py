"""The speed of every stage, how cost grows, and where the time goes.

* ``measuring``: seconds, ratios, peak memory, and rows of figures with their goals;
* ``works``: what is measured, and what it is measured against;
* ``loading``: how long a training waits for its data;
* ``stages``: one function for each stage;
* ``growth``: cost against size, with fitted exponents;
* ``parts``: the time of a call by named parts, without a line of measuring in the library;
* ``pictures``: the figures of growth and of parts.

``tools/bench.py`` and ``tools/profile_stages.py`` run them.
"""
