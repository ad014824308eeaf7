"""A panic inside the library is an exception with a code in Python."""

import jrs

session = jrs.Session()
for place in (0, 1):
    try:
        jrs._check(jrs._lib.jrs_debug_panic(session.handle, place))
        raise SystemExit("no panic")
    except jrs.Error as error:
        assert error.code == 900 and "injected" in str(error), error
