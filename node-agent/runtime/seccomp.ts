/** A rule of a profile in Docker's format, which says for which capabilities, architectures and kernels it holds. */
interface ProfileRule {
  readonly names: readonly string[];
  readonly action: string;
  readonly errnoRet?: number;
  readonly args?: readonly SeccompArgument[] | null;
  readonly includes?: ProfileFilter;
  readonly excludes?: ProfileFilter;
}
interface ProfileFilter {
  readonly caps?: readonly string[];
  readonly arches?: readonly string[];
  readonly minKernel?: string;
}
interface SeccompArgument {
  readonly index: number;
  readonly value: number;
  readonly valueTwo?: number;
  readonly op: string;
}

export interface SeccompProfile {
  readonly defaultAction: string;
  readonly defaultErrnoRet?: number;
  readonly syscalls: readonly ProfileRule[];
}

/** The part of an OCI configuration that seccomp takes. */
export interface OciSeccomp {
  readonly defaultAction: string;
  readonly defaultErrnoRet?: number;
  readonly architectures: readonly string[];
  readonly syscalls: readonly {
    readonly names: readonly string[];
    readonly action: string;
    readonly errnoRet?: number;
    readonly args?: readonly SeccompArgument[];
  }[];
}

export interface SeccompContext {
  /** "CAP_SYS_ADMIN", ... */
  readonly capabilities: readonly string[];
  /** OCI name: amd64, arm64. */
  readonly architecture: string;
  /** "6.1.0-13-amd64". */
  readonly kernel: string;
}

const scmpNames: Readonly<Record<string, string>> = {
  amd64: "SCMP_ARCH_X86_64",
  arm64: "SCMP_ARCH_AARCH64",
  ppc64le: "SCMP_ARCH_PPC64LE",
  riscv64: "SCMP_ARCH_RISCV64",
  s390x: "SCMP_ARCH_S390X",
};

/**
 * The profile as a runtime takes it, for one container. Only the native architecture is in it: three cost 10 ms a
 * start, and programs of another one (32-bit x86) are killed by SIGSYS.
 */
export function resolveSeccomp(profile: SeccompProfile, context: SeccompContext): OciSeccomp {
  const native = scmpNames[context.architecture];
  return {
    defaultAction: profile.defaultAction,
    ...(profile.defaultErrnoRet === undefined ? {} : { defaultErrnoRet: profile.defaultErrnoRet }),
    architectures: native === undefined ? [] : [native],
    syscalls: profile.syscalls
      .filter((rule) => holds(rule, context))
      .map((rule) => ({
        names: rule.names,
        action: rule.action,
        ...(rule.errnoRet === undefined ? {} : { errnoRet: rule.errnoRet }),
        ...(rule.args === undefined || rule.args === null || rule.args.length === 0 ? {} : { args: rule.args }),
      })),
  };
}

/** Every kind of condition in `includes` must hold, and none in `excludes`. */
function holds(rule: ProfileRule, context: SeccompContext): boolean {
  const { includes = {}, excludes = {} } = rule;
  const caps = (list: readonly string[] | undefined) => list?.every((cap) => context.capabilities.includes(cap));
  const arch = (list: readonly string[] | undefined) => list?.includes(context.architecture);
  const kernel = (least: string | undefined) =>
    least === undefined ? undefined : isKernelAtLeast(context.kernel, least);
  if (includes.caps?.length !== 0 && caps(includes.caps) === false) return false;
  if (includes.arches?.length !== 0 && arch(includes.arches) === false) return false;
  if (kernel(includes.minKernel) === false) return false;
  if (excludes.caps?.some((cap) => context.capabilities.includes(cap)) === true) return false;
  if (arch(excludes.arches) === true || kernel(excludes.minKernel) === true) return false;
  return true;
}

function isKernelAtLeast(kernel: string, least: string): boolean {
  const parts = (text: string) => text.split(/[.-]/).map((part) => Number.parseInt(part, 10) || 0);
  const [major = 0, minor = 0] = parts(kernel);
  const [wantedMajor = 0, wantedMinor = 0] = parts(least);
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
}
