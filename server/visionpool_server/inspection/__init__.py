"""What `visionpool inspect` finds out, without a server: `inspector` asks, `report` is the answer.

files -> identity (task, family, why) -> shapes (what to fix) -> survey (a runtime's view) -> placement, cost -> report
"""
