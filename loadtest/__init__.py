"""Load tests of a served model: Locust users, a sweep over concurrency, and its report.

Three ways in:

* ``run_sweep`` (:mod:`loadtest.sweep`): the whole comparison, which ``drafthouse loadtest SPEC`` calls.
* ``locust -f loadtest/locustfile.py --host grpc://localhost:8001``: the same users by hand, with Locust's web
  page, headless, or spread over processes and machines.
* ``write_report`` (:mod:`loadtest.report`): report.json, report.html and plots from the raw records of a
  sweep.

Before the first request the servers are asked who they are, and what their prefix caches have of a prompt is the same
in every arm (:mod:`loadtest.servers`).

Everything is measured at the client and stored as raw records first (:mod:`loadtest.records`); every figure
is computed from them afterwards (:mod:`loadtest.measures`, :mod:`loadtest.summary`).
"""
