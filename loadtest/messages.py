"""What the conductor of a sweep and the processes with its users say to one another.

They talk through Locust's own messages, which a runner without workers delivers to itself, so that one
process and many run the same code. Data are what msgpack can carry.

    conductor -> workers   OPEN    {phase, cell, opened_ns, salt}    a cell begins, or what reads its prompts
    worker -> conductor    TAKE    {phase, ticket}                   a user is free
    conductor -> worker    WORK    {ticket, work or None}            its next request; None: no more
    worker -> conductor    DONE    {index, sent, error}              it has ended, and its record is written
    conductor -> workers   CLOSE   {phase}                           it is over: cancel what runs

Phases count what is opened, so that a question asked in one is not answered with work of the next.
"""

OPEN = "drafthouse-open"
TAKE = "drafthouse-take"
WORK = "drafthouse-work"
DONE = "drafthouse-done"
CLOSE = "drafthouse-close"
