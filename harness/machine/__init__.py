"""What a machine is: software, devices, locks, seeds, progress. Nothing here knows of segmentation.

Linux and macOS are supported; each module says what it does where Linux's files are missing.
"""
