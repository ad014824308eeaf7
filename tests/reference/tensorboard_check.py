"""Reads a folder of event files with TensorBoard's own reader and prints its scalars as JSON.

Usage: python tensorboard_check.py FOLDER
Output: {"tag": [[step, value], ...], ...}, with tags and steps as TensorBoard would show them. Needs the Python package
tensorboard (2.x); exits with 77 where it is missing, so that callers can skip.
"""

import json
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as missing:
    print(missing)
    sys.exit(77)

accumulator = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
accumulator.Reload()
# Newer event files carry scalars as tensors after TensorBoard's own migration; plain ones stay scalars.
scalars = {tag: [[event.step, event.value] for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
json.dump(scalars, sys.stdout, sort_keys=True)
