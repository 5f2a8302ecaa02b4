"""Measuring detectors and descriptors.

* ``detection``: average precision and localisation error on drawn shapes;
* ``classical``: OpenCV's detectors and extractors in the shape of ours;
* ``metrics``: the metrics of an image pair, and bootstrap intervals;
* ``protocols``, ``hpatches``, ``results``: the HPatches evaluation;
* ``mini``: a small benchmark in the HPatches layout, made from photographs.
"""
