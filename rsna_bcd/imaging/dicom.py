"""stub"""
def read_dicom(path):
    raise NotImplementedError
