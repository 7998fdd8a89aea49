"""What the conductor of a sweep and the processes with its users say to one another.

They talk through Locust's own messages, which a runner without workers delivers to itself, so that one
process and many run the same code. Data are what msgpack can carry.

    conductor -> workers   OPEN    {cell, opened_ns}                 a cell begins
    worker -> conductor    TAKE    {cell, ticket}                    a user is free
    conductor -> worker    WORK    {ticket, work or None}            its next request; None: no more
    worker -> conductor    DONE    {cell, index, sent, error}        it has ended, and its record is written
    conductor -> workers   CLOSE   {cell}                            the cell is over: cancel what runs
"""

OPEN = "drafthouse-open"
TAKE = "drafthouse-take"
WORK = "drafthouse-work"
DONE = "drafthouse-done"
CLOSE = "drafthouse-close"
