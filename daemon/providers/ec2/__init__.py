"""The provider `ec2`: satellites that are EC2 instances. `provider` is the way in.

It must never start, stop or terminate an instance whose tags name another fleet or satellite, and never show AWS's own
error messages to clients.
"""
