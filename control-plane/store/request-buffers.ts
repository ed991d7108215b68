/** Smaller requests are the collector's: their memory comes from what it has already. */
const leastKept = 64 * 1024;
/** As many as commits under way at once. */
const mostIdle = 4;

/**
 * The memory of large requests, used again. Each of its own would take its pages from the system anew, and some dozens of them not yet
 * collected make the collector look through all that the process holds, which takes a large view's leader most of a second.
 */
export class RequestBuffers {
  readonly #idle: Buffer<ArrayBuffer>[] = [];

  /** So many bytes, with anything in them. */
  take(length: number): Buffer<ArrayBuffer> {
    if (length < leastKept) return Buffer.allocUnsafe(length);
    const at = this.#idle.findIndex((one) => one.length >= length);
    const [found] = at < 0 ? [] : this.#idle.splice(at, 1);
    // Requests of one kind are nearly of a size.
    return (found ?? Buffer.allocUnsafeSlow(length + (length >> 2))).subarray(0, length);
  }

  /** Nobody reads it any more. */
  giveBack(request: Buffer<ArrayBuffer>): void {
    if (request.length < leastKept) return;
    this.#idle.push(Buffer.from(request.buffer));
    if (this.#idle.length > mostIdle) this.#idle.shift();
  }
}
