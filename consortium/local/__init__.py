"""The embedded federation: all of it on one machine, as supervised child processes.

Modules: `layout` builds a federation's directory (`paths`, `identities`, `ports`), `children` says how each process is
started, `supervisor` and `keeper` keep them alive, `leftovers` and `lock` see that nothing stays behind, `service`
starts and stops it all, `doctor` checks the machine, `steward` registers data, `demo` is the main job.
"""
