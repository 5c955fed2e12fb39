"""What people write: reading YAML with positions, checking, params, rendering to plans. Never in the pod.

reading ─► checking (schemas, semantics) ─► model ─► rendering (params, substitution) ─► the plan's tasks
              └─► findings
"""
