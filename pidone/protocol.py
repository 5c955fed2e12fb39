"""Constants of the repo protocol, for both of its ends: where the repo is, paths, headers, limits and waits.

    GET  /v1/bundle    the pod's plan; the answer is held until it differs from the plans in If-None-Match
    GET  /v1/doorbell  303: the pod has tasks. 200: it has none, and a byte follows when it must ask again
    POST /v1/status    the pod's report

The body of a bundle is described in ``pidone.plan.format``. Nothing is imported here, since the stage of a pod that
asks whether there is a plan uses these constants too.
"""

SERVICE, SERVICE_NAMESPACE, PORT = "pidone-repo", "pidone-system", 6060
IN_CLUSTER = f"http://{SERVICE}.{SERVICE_NAMESPACE}.svc:{PORT}"  # also in the images of all pods

BUNDLE_PATH = "/v1/bundle"
DOORBELL_PATH = "/v1/doorbell"
STATUS_PATH = "/v1/status"

# What a pod says about itself. It can only lead to a refusal, never to a grant.
POD_UID_HEADER = "pidone-pod-uid"
HOSTNAME_HEADER = "pidone-hostname"
NAMESPACE_HEADER = "pidone-namespace"
BOOT_HEADER = "pidone-boot"  # random for each start of the program in the pod
VERSION_HEADER = "pidone-version"
LAST_WORDS_HEADER = "pidone-last-words"  # why the program in the pod ended the last time; with the doorbell
# What the repo says about itself: random for each start of a replica.
REPO_HEADER = "pidone-repo"

MAX_BUNDLE_BYTES = 256 * 1024  # bundles have 1 to 5 KiB, so a larger one is a fault
MAX_REPORT_BYTES = 64 * 1024

# How long a pod asks the repo to hold a request: below the 60 s after which middleboxes drop idle connections.
WAIT_SECONDS = 55.0
MAX_WAIT_SECONDS = 60.0  # longer waits are shortened to this
MAX_RETRY_AFTER_SECONDS = 3600.0
