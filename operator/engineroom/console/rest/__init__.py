"""The REST application: routes, dispatch, pagination, the OpenAPI document."""
