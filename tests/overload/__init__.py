"""Ten times as many clients as a service has places, a tenth of them hostile, and what the others notice.

    python -m tests.overload                    # some minutes; the verdict is the exit status
    python -m tests.overload --rounds 6 --seconds 30

`drafthouse serve` runs on a tiny model with limits as a shared service sets them. Well-behaved clients stream short
answers all the time; in every second stretch of time hostile ones join them, who send texts of megabytes, two hundred
thousand stop words, long one-shots whose connection they close, streams that they leave, and nonsense. Stretches with
and without them alternate, so that the drift of a shared machine falls on both alike. What must hold: the 95th
percentile of a well-behaved client's latency, refusals and the times until it may come again included, is at most
twice that without hostile clients, and no answer is wrong.
"""
