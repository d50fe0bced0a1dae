"""Imaging: one file becomes pixels that look like a mammogram. numpy, OpenCV and pydicom only.

`dicom` and `picture` read a file into a `Mammogram` (stored values and how to show them), `window`
maps stored values to [0, 1] with tissue bright, `breast` finds the breast in the result.
"""
