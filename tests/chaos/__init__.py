"""Kills and stops parts of a running service at random, and looks whether anybody suffers for longer than he must.

    python -m tests.chaos                          # 20 blows, some minutes
    python -m tests.chaos --blows 500 --seed 7     # longer; the same seed deals the same blows

`drafthouse serve` runs on a tiny model, on a disk of its own that can be filled up, while clients ask for texts of all
kinds. Each blow hits the server, one of its stubs, the guard, `serve` itself, or a client, by SIGKILL or SIGSTOP, or
takes the room on the disk. What must hold:

 * every request ends with an answer or an error within its limit, without help by a deadline of the client's;
 * the service answers again within 30 seconds, and a fixed prompt has the same answer as ever;
 * at the end no process, no file in shared memory and no temporary file is left.
"""
