"""The coordinator's service: one folder, one front door, and Flower's SuperLink behind it.

`home` is the folder with all that the service is: its settings, its keys, who is admitted and which studies
are to run. `certificates` makes the papers by which machines know each other, `admission` lets hospitals in
and shuts them out. `settings` is what `service.toml` says, `runs` the list of studies; `serve` keeps the
service's processes and lists true, `superlink` and `database` start Flower's own programs, and `studies` is
what the commands ask of all this.
"""
