"""What EC2's machines are like, as the fleet has to know it."""

from bentpipe.daemon.model import MachineTraits

TRAITS = MachineTraits(
    look_deadline_s=15.0,  # longer than a late answer of EC2 takes, with the repeats of boto3
    address_age_s=5.0,  # as `address_age` by default: EC2 gives a private address out again within seconds
    appear_grace_s=120.0,  # EC2 is eventually consistent: a new instance is known to be missing for a minute
    start_grace_s=30.0,  # the same for the state of an instance that exists: seconds
    stop_grace_s=60.0,  # the same; a stop that EC2 accepts and does not carry out is rare
    stuck_stopping_s=600.0,  # a hibernation with much memory takes minutes, and cutting it off loses that memory
    too_early_retry_s=120.0,  # an instance must run for about two minutes before it can hibernate
    hibernation_limit_s=60 * 86400.0,  # EC2's user guide: no instance stays hibernated for longer than 60 days
)
