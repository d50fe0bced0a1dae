"""Preparation: many image files become crops on disk, or arrays, without losing any of them.

`crop` turns one file into one crop, `engine` does that on many processes, `manifest` keeps the
prepared folder: pictures, journal, tables. No torch.
"""
