"""A local Modal control plane: the unmodified `modal` SDK talks to it over gRPC on loopback.

One process serves apps, functions, calls, named objects, volumes, logs and schedules; containers are ordinary
processes of the wheel's own container entrypoint. Nothing in the SDK is patched, so the code under test is
the code that ships.

    python -m local_modal serve --state-dir .modal-state
"""
