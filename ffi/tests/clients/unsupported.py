"""A session that asks for bf16 where the processor has no matrix unit (AMX) is an exception with a code in Python.

    python unsupported.py HAS_UNIT
"""

import sys

import jrs

try:
    jrs.Session(precision=jrs.PRECISION_BF16)
    assert sys.argv[1] == "1", "a session that this processor cannot serve"
except jrs.Error as error:
    assert sys.argv[1] == "0" and error.code == 104 and "AMX" in str(error), error
    # What the processor can do is still to be had.
    jrs.Session(precision=jrs.PRECISION_F32)
