"""The base class of what can go wrong for a user of the kit.

The client and the servers' programs (`deploy/`) stand alone, and have roots of their own: `client.errors.ClientError`
and `deploy.server.TritonError`.
"""


class DrafthouseError(Exception):
    """Something is wrong that a user can mend; the text says what, where, and what would be right.

    Commands tell it in a line and leave with status 2.
    """
