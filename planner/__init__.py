"""What to run when: step costs (`drafthouse bench`), acceptance and costs of a speculator (`drafthouse profile`)."""
