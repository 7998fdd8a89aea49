"""What to run when: step costs (`drafthouse bench`), a speculator's acceptance and costs (`drafthouse profile`), the
decision (`drafthouse plan`).
"""
