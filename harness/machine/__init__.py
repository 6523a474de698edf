"""What a machine is: software, devices, locks, seeds, progress. Nothing here knows of segmentation."""
