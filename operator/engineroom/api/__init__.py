"""The kinds of engineroom.dev as pydantic models."""

GROUP = "engineroom.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "engineroom"

#: Labels and annotations that Engineroom sets.
LABEL_POOL = f"{GROUP}/pool"
LABEL_COMPONENT = f"{GROUP}/component"
ANNOTATION_TEMPLATE_HASH = f"{GROUP}/template-hash"
#: On a pod, "true": the operator drains the pod, then deletes it (``engineroom drain POOL POD``).
ANNOTATION_DRAIN = f"{GROUP}/drain"
#: On a WorkerPool, names of pods with commas between: the operator drains them. The API uses it,
#: because it has no rights to pods.
ANNOTATION_DRAIN_PODS = f"{GROUP}/drain-pods"
#: On a Deployment: a digest of the inputs of the objects that only pods need.
ANNOTATION_EQUIPPED = f"{GROUP}/equipped"
#: On a Namespace, "enabled": its pools may use the installation's Redis. Authors of pools cannot
#: label Namespaces.
LABEL_SHARED_REDIS = f"{GROUP}/shared-redis"
SHARED_REDIS_ENABLED = "enabled"
