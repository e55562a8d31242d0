#!/usr/bin/perl
# Calls by AnyEvent::Fork::RPC: `anyevent_fork_rpc.pl HOW COUNT LENGTH`.
#
# HOW is `one` (one call at a time) or `pipelined` (as many in flight as its queue takes). Each call takes LENGTH octets and
# gives them back, by its synchronous backend.
use strict;
use warnings;

use AnyEvent;
use AnyEvent::Fork;
use AnyEvent::Fork::RPC;
use EV;
use Time::HiRes ();

my ($how, $count, $length) = @ARGV;
die "usage: $0 one|pipelined COUNT LENGTH\n" unless @ARGV == 3 && $how =~ /^(?:one|pipelined)$/;

alarm 60;    # no run outlasts this

my $rpc = AnyEvent::Fork
   ->new
   ->eval ("package Bench; sub echo { \$_[0] }")
   ->AnyEvent::Fork::RPC::run ("Bench::echo", on_error => sub { die "$_[0]\n" });
my $octets = "x" x $length;

# The process is started at first use; that is not what is measured.
my $started = AE::cv;
$rpc->($octets, $started);
$started->recv;

my $all_answered = AE::cv;
my $answered = 0;
my $ask;
$ask = sub {
   $rpc->($octets, sub {
      ++$answered == $count and return $all_answered->send;
      $ask->() if $how eq "one";
   });
};
my $start = Time::HiRes::time;
$ask->() for 1 .. ($how eq "one" ? 1 : $count);
$all_answered->recv;
my $seconds = Time::HiRes::time - $start;
printf "calls=%d seconds=%.6f per_second=%.1f\n", $count, $seconds, $count / $seconds;
