"""otel-procmon: every process on a Linux host, from exec to exit, told in OpenTelemetry.

The subpackages are the stages through which data flows, in this order::

    source      bytes from the kernel's ring buffer, from a recording, or from Tetragon's JSON
    decode      those bytes as events (`otel_procmon.events`): Exec, Fork, Exit, Discovered
    lineage     events as images with a parent, a trace and ancestors; what happened to them
    containers  which container and pod an image belongs to
    filters     what is to leave this host
    view        the same as Tetragon's JSON and its compact line, for terminals and files
    convert     log records and spans, with the attributes of the semantic conventions
    encode      records as OTLP
    deliver     OTLP to a Collector, or into a file

`agent` puts the stages together, `cli` is the command line, `ledger` accounts for every event.
"""

__version__ = "0.1.0"
