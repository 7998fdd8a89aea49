"""Files and directories: read within bounds, hashed, and written so that a reader finds the old or the new.

`reading`: JSON. `safetensors`: headers. `hashes`: of files and of directories of weights. `writing`: files.
`directories`: whole directories, with a mark by which the kit knows its own.
"""
