"""What the SDK has to know of a function or a class to call it."""

from __future__ import annotations

from modal_proto import api_pb2 as api

from local_modal import ids
from local_modal.model import FunctionRecord


def function_handle(
    record: FunctionRecord, source: api.FunctionPrecreateRequest | api.Function
) -> api.FunctionHandleMetadata:
    """The handle of a function as `source` describes it; without URLs."""
    formats = {
        "supported_input_formats": source.supported_input_formats,
        "supported_output_formats": source.supported_output_formats,
    }
    handle = api.FunctionHandleMetadata(
        function_name=source.function_name,
        function_type=source.function_type,
        # AppPublish sends it back.
        definition_id=ids.derived_id(ids.DEFINITION, record.function_id),
        app_id=record.app_id,
        function_schema=source.function_schema,
        **formats,
    )
    if isinstance(source, api.Function) and source.is_class:
        handle.class_parameter_info.CopyFrom(source.class_parameter_info)
    for name, method in source.method_definitions.items():
        # Without use_method_name the method's name is lost and its container can't find it.
        handle.method_handle_metadata[name].CopyFrom(
            api.FunctionHandleMetadata(
                function_name=method.function_name,
                function_type=method.function_type,
                is_method=True,
                use_method_name=name,
                function_schema=method.function_schema,
                supported_input_formats=method.supported_input_formats,
                supported_output_formats=method.supported_output_formats,
            )
        )
    return handle
