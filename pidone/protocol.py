"""Constants of the repo protocol for both of its ends: address, paths, headers, limits and waits.

    GET  /v1/bundle    the pod's plan; the answer is held until it differs from the plans in If-None-Match
    GET  /v1/doorbell  303: the pod has tasks. 200: it has none, and a byte follows when it must poll
    POST /v1/status    the pod's report

The body of a bundle is described in ``pidone.plan.format``. This module imports nothing, since the
stage of a pod that only requests the doorbell uses it too.
"""

SERVICE, SERVICE_NAMESPACE, PORT = "pidone-repo", "pidone-system", 6060
IN_CLUSTER = f"http://{SERVICE}.{SERVICE_NAMESPACE}.svc:{PORT}"  # also in the images of all pods

BUNDLE_PATH = "/v1/bundle"
DOORBELL_PATH = "/v1/doorbell"
STATUS_PATH = "/v1/status"

# Claims of a pod. They can only lead to a refusal, never to a grant.
POD_UID_HEADER = "pidone-pod-uid"
HOSTNAME_HEADER = "pidone-hostname"
NAMESPACE_HEADER = "pidone-namespace"
BOOT_HEADER = "pidone-boot"  # random for each start of the program in the pod
VERSION_HEADER = "pidone-version"
LAST_WORDS_HEADER = (
    "pidone-last-words"  # the reason of the last end of the program in the pod; with the doorbell
)
# Of the repo: random for each start of a replica.
REPO_HEADER = "pidone-repo"

MAX_BUNDLE_BYTES = 256 * 1024  # bundles have 1 to 5 KiB, so a larger one is a fault
MAX_REPORT_BYTES = 64 * 1024

# The hold that a pod requests, below the 60 s after which middleboxes drop idle connections.
WAIT_SECONDS = 55.0
MAX_WAIT_SECONDS = 60.0  # longer waits are shortened to this
MAX_RETRY_AFTER_SECONDS = 3600.0
