module pidone.dev/tests/kubectl-yaml

go 1.19

require k8s.io/apimachinery v0.27.16

require (
	sigs.k8s.io/json v0.0.0-20221116044647-bc3834ca7abd // indirect
	sigs.k8s.io/yaml v1.4.0 // indirect
)
