#!/usr/bin/perl
# New processes by AnyEvent::Fork: `anyevent_fork.pl HOW COUNT IN_FLIGHT HOLD_MB`.
#
# HOW is
#   new       AnyEvent::Fork->new->run: forked from its template process
#   new_exec  AnyEvent::Fork->new_exec->run: a fresh perl each time
#   fork      perl's own fork of this very process, for comparison
#
# Each process gets a socket, exits at once, and counts when its end of file was seen here, as in the
# module's own documented benchmark (`run ("CORE::exit")`). HOLD_MB is memory this process has written to.
use strict;
use warnings;

use AnyEvent;
use AnyEvent::Fork;
use EV;
use POSIX ();
use Socket;
use Time::HiRes ();

my ($how, $count, $in_flight, $hold_mb) = @ARGV;
die "usage: $0 new|new_exec|fork COUNT IN_FLIGHT HOLD_MB\n"
   unless @ARGV == 4 && $how =~ /^(?:new|new_exec|fork)$/ && $count >= $in_flight && $in_flight >= 1;

alarm 60;    # no run outlasts this
my $held = "x" x ($hold_mb * 1_000_000);

my $all_seen = AE::cv;
my ($asked, $seen) = (0, 0);
my %watcher;

sub await_end {
   my ($socket) = @_;
   my $number = fileno $socket;
   $watcher{$number} = AE::io $socket, 0, sub {
      die "a process wrote instead of leaving\n" if sysread $socket, my $byte, 1;
      delete $watcher{$number};
      close $socket;
      ++$seen == $count ? $all_seen->send : ask_for_one ();
   };
}

sub fork_here {
   socketpair my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC or die "socketpair: $!\n";
   my $pid = fork // die "fork: $!\n";
   POSIX::_exit 0 unless $pid;
   close $theirs;
   await_end ($ours);
}

sub ask_for_one {
   return if $asked == $count;
   $asked++;
   return fork_here () if $how eq "fork";
   AnyEvent::Fork->$how->run ("CORE::exit", \&await_end);
}

# The template is started at first use; that is not what is measured.
if ($how eq "new") {
   my $started = AE::cv;
   AnyEvent::Fork->new->run ("CORE::exit", $started);
   sysread $started->recv, my $byte, 1;
}
$SIG{CHLD} = "IGNORE" if $how eq "fork";    # the kernel reaps

my $start = Time::HiRes::time;
ask_for_one () for 1 .. $in_flight;
$all_seen->recv;
my $seconds = Time::HiRes::time - $start;
printf "processes=%d seconds=%.6f per_second=%.1f\n", $count, $seconds, $count / $seconds;
