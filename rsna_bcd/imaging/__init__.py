"""Imaging: one file to the pixels of a mammogram. numpy, OpenCV, Pillow and pydicom only.

`dicom` and `raster` read a file into a `Mammogram` (stored values and their display transform),
`voi` maps stored values to [0, 1] with tissue bright, `breast` segments the breast in the result.
"""
