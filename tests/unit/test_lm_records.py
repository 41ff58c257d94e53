"""Records as they are written to the store."""

from __future__ import annotations

from modal_proto import api_pb2 as api

from local_modal.model import FunctionRecord


def test_a_function_comes_back_as_it_was() -> None:
    record = FunctionRecord("fu-1", "ap-1", "f", api.FunctionHandleMetadata(function_name="f"))
    assert FunctionRecord.from_bytes(record.to_bytes()) == record
    record.definition = api.Function(function_name="f", timeout_secs=5)
    record.staged = api.Function(function_name="f", timeout_secs=6)
    record.autoscaler["fu-1"] = api.AutoscalerSettings(max_containers=3)
    assert FunctionRecord.from_bytes(record.to_bytes()) == record
