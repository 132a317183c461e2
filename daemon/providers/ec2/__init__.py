"""The provider `ec2`: satellites that are EC2 instances. `provider` is the way in."""
