"""Asks a running service for hours, and looks whether it answers at the end as it did at the beginning.

    python -m tests.soak --minutes 120 --into runs/soak     # two hours at concurrency 8
    python -m tests.soak --judge --into runs/soak           # what the records say, of a run that goes on, too

`drafthouse serve` runs on a tiny model, while clients ask for texts of all kinds, over HTTP and gRPC, through both
doors: short and long, greedy and sampled, with stop words and log-probabilities; some leave in the middle of a stream,
some close the connection of a one-shot request. Whatever is read to its end is compared with what the service said when
it was asked alone. Records are appended as they come; a run into a directory that has some goes on until all its
minutes are there. What must hold:

 * no answer is wrong, and every request comes to an end within its limit;
 * the server's memory is flat: the interval of its slope tells of no growth;
 * when the clients have left, nothing runs in the engine and its cache is free.
"""
