"""Recordings in files: WFDB, NumPy, MATLAB, HDF5, EDF, DICOM. The folder is the registry of formats.

recording = read_recording("ward3/e0001.hea")
recording = read_recording("e0001.npy", rate_hz=500, leads=["I", "II", ...], unit="mV")
"""

from ecgfm.files.base import FileFormat as FileFormat
from ecgfm.files.base import Recording as Recording
from ecgfm.files.base import Told as Told
from ecgfm.files.base import find as find
from ecgfm.files.base import read_recording as read_recording
from ecgfm.files.base import read_recordings as read_recordings
