/**
 * The program of the spawner's child, for the perl of Debian's perl-base (essential: it is on every host). Frames go both
 * ways: a decimal length, a line feed, and that many bytes, fields with a NUL between them. What a request asks for is
 * done at once, programs side by side; when there is nothing more to read it ends, and what it has started goes on.
 */
export const helperProgram = String.raw`
use strict;
my ($mount, $umount2, $unshare, $setns, $dup3, $setsid, $prctl, $parent) = map { $_ + 0 } splice(@ARGV, 0, 8);
$0 = shift @ARGV;
# Killed with whoever started it: what waits in the pipe must not be done after him.
syscall($prctl, 1, 9, 0, 0, 0) == 0 or die "prctl: $!";
exit 0 if getppid() != $parent;
# Descriptor 3 is for those it starts.
open(my $three, "<", "/dev/null") or die "/dev/null: $!";
fileno($three) == 3 or die "descriptor 3 is taken";
open(my $null, "+<", "/dev/null") or die "/dev/null: $!";
$SIG{PIPE} = "IGNORE";

my ($in, $out, %pipes, @ended) = ("", "");

sub answer {
  my ($id, $code, $stdout, $stderr) = @_;
  my $body = join("\0", $id, $code, length $stdout, $stdout . $stderr);
  $out .= length($body) . "\n" . $body;
  while (length $out) {
    my $written = syswrite(STDOUT, $out);
    exit 0 unless defined $written;
    substr($out, 0, $written) = "";
  }
}

sub child {
  my ($r, $output, $errors, $input) = @_;
  my $fail = sub { syswrite(STDERR, "$_[0]: $!"); exit 127 };
  syscall($dup3, fileno($input), 0, 0);
  syscall($dup3, fileno($r->{sync} ? $null : $output), 1, 0);
  syscall($dup3, fileno($errors), 2, 0);
  if ($r->{sync}) {
    syscall($setsid);
    syscall($dup3, fileno($output), 3, 0);
  }
  if ($r->{netns} ne "") {
    open(my $ns, "<", $r->{netns}) or $fail->($r->{netns});
    syscall($setns, fileno($ns), 0x40000000) == 0 or $fail->("setns $r->{netns}");
  }
  if ($r->{hide} ne "") {
    my $root = "/";
    my $nothing = "";
    syscall($unshare, 0x20000) == 0 or $fail->("unshare");
    syscall($mount, $nothing, $root, $nothing, 0x84000, 0) == 0 or $fail->("mount /");
    my $type = "tmpfs";
    syscall($mount, $type, $r->{hide}, $type, 0, $nothing) == 0 or $fail->("mount $r->{hide}");
  }
  chdir($r->{cwd}) or $fail->($r->{cwd});
  $SIG{PIPE} = "DEFAULT";
  %ENV = @{$r->{env}};
  my @args = @{$r->{args}};
  { no warnings; exec { $args[0] } @args; }
  $fail->($args[0]);
}

# In this process, which goes there and back: a fork would cost as much again.
sub network {
  my ($id, $path, %settings) = @_;
  my ($own, $nothing, $up) = ("/proc/self/ns/net", "", pack("a16 s x22", "lo", 1));
  open(my $home, "<", $own) or return answer($id, 1, "", "$own: $!");
  syscall($unshare, 0x40000000) == 0 or return answer($id, 1, "", "unshare: $!");
  my ($error, $handle) = ("");
  for my $file (grep { -e } keys %settings) {
    open($handle, ">", $file) && syswrite($handle, $settings{$file}) or $error = "$file: $!";
  }
  # SIOCSIFFLAGS with IFF_UP, then MS_BIND
  socket($handle, 2, 2, 0) && ioctl($handle, 0x8914, $up) or $error = "lo: $!";
  syscall($mount, $own, $path, $nothing, 0x1000, 0) == 0 or $error = "mount $path: $!" if $error eq "";
  syscall($setns, fileno($home), 0x40000000) == 0 or die "setns: $!";
  answer($id, $error eq "" ? 0 : 1, "", $error);
}

sub start {
  my ($r) = @_;
  pipe(my $output, my $outputEnd) or return answer($r->{id}, -1, "", "pipe: $!");
  pipe(my $errors, my $errorsEnd) or return answer($r->{id}, -1, "", "pipe: $!");
  my $input;
  if ($r->{input} eq "") { $input = $null }
  else {
    pipe($input, my $inputEnd) or return answer($r->{id}, -1, "", "pipe: $!");
    # Short enough for the pipe to hold all of it.
    syswrite($inputEnd, $r->{input});
  }
  my $pid = fork();
  return answer($r->{id}, -1, "", "fork: $!") unless defined $pid;
  child($r, $outputEnd, $errorsEnd, $input) if $pid == 0;
  my $job = { %$r, pid => $pid, open => 2, out => "", err => "" };
  $pipes{fileno $output} = [$output, $job, "out"];
  $pipes{fileno $errors} = [$errors, $job, "err"];
}

# A daemon's answer is its first line; it and what holds its outputs go on.
sub look {
  my ($job) = @_;
  if ($job->{sync}) {
    return unless $job->{out} =~ /\n/ || $job->{shut};
    delete $pipes{$_} for grep { $pipes{$_}[1] == $job } keys %pipes;
    if ($job->{out} =~ /\n/) {
      push @ended, $job->{pid};
      return answer($job->{id}, 0, $job->{out}, $job->{err});
    }
  }
  elsif ($job->{open} > 0) { return }
  waitpid($job->{pid}, 0);
  answer($job->{id}, $? & 127 ? -1 : $? >> 8, $job->{out}, $job->{err});
}

sub request {
  my ($id, $verb, @fields) = split(/\0/, $_[0], -1);
  if ($verb eq "mount") {
    my ($cwd, $source, $target, $type, $flags, $data) = @fields;
    my $done = chdir($cwd) && syscall($mount, $source, $target, $type, $flags + 0, $data) == 0;
    my $error = $done ? "" : "$!";
    chdir("/");
    return answer($id, $done ? 0 : 1, "", $error);
  }
  if ($verb eq "umount") {
    my ($target, $flags) = @fields;
    my $done = syscall($umount2, $target, $flags + 0) == 0;
    return answer($id, $done ? 0 : 1, "", $done ? "" : "$!");
  }
  return network($id, @fields) if $verb eq "network";
  my ($cwd, $netns, $hide, $input, $variables, @rest) = @fields;
  my @env = splice(@rest, 0, 2 * $variables);
  start({ id => $id, sync => $verb eq "daemon", cwd => $cwd, netns => $netns, hide => $hide, input => $input,
    env => \@env, args => \@rest });
}

chdir("/");
for (;;) {
  my $read = "";
  vec($read, 0, 1) = 1;
  vec($read, $_, 1) = 1 for keys %pipes;
  next if select($read, undef, undef, undef) < 0;
  my %touched;
  for my $fd (grep { vec($read, $_, 1) } keys %pipes) {
    my ($pipe, $job, $name) = @{$pipes{$fd}};
    $touched{$job} = $job;
    next if sysread($pipe, $job->{$name}, 65536, length $job->{$name});
    delete $pipes{$fd};
    $job->{open} -= 1;
    $job->{shut} = 1 if $name eq "out";
  }
  look($_) for values %touched;
  @ended = grep { waitpid($_, 1) == 0 } @ended;
  next unless vec($read, 0, 1);
  exit 0 unless sysread(STDIN, $in, 65536, length $in);
  while ($in =~ /^([0-9]+)\n/ && length($in) >= $+[0] + $1) {
    my ($start, $length) = ($+[0], $1);
    my $body = substr($in, $start, $length);
    substr($in, 0, $start + $length) = "";
    request($body);
  }
}
`;
