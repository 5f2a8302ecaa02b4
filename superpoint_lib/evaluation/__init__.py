"""Measuring detectors and descriptors.

* ``detection``: average precision and localisation error on drawn shapes;
* ``classical``: OpenCV's detectors and extractors in the shape of ours;
* ``metrics``: the metrics of an image pair, and bootstrap intervals;
* ``protocols``, ``sequences``, ``extractors``, ``pairs``, ``results``: the parts of the HPatches
  evaluation, which ``hpatches`` brings together;
* ``mini``: a small benchmark in the HPatches layout, made from photographs.
"""
