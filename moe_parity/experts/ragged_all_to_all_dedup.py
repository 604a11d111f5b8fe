"""Token dispatch by a ragged all-to-all of packed rows: a token is sent once a device.

The rows and slots are those of `all_to_all.py`, but only slots in use are sent, so no padding is on
the wire. Unused slots of a receiver's buffer are undefined.
"""

import functools

from moe_parity.experts.all_to_all import all_to_all_ffn

ragged_all_to_all_dedup_ffn = functools.partial(all_to_all_ffn, is_ragged=True)
