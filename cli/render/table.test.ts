import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Progress } from "./progress.ts";
import type { Screen } from "./style.ts";
import { table } from "./table.ts";

function screen(columns: number, more: Partial<Screen> = {}): Screen & { readonly text: () => string } {
  let written = "";
  return {
    isTerminal: Number.isFinite(columns),
    columns,
    colours: false,
    write: (text) => {
      written += text;
    },
    text: () => written,
    ...more,
  };
}

type Row = readonly [string, string, string];
const columns = [
  { title: "NAME", value: (row: Row) => row[0], shrinkTo: 4 },
  { title: "N", value: (row: Row) => row[1], align: "right" as const },
  { title: "MESSAGE", value: (row: Row) => row[2], shrinkTo: 5 },
];

describe("table", () => {
  it("aligns, and leaves everything whole where it is no terminal", () => {
    const rows: Row[] = [
      ["web", "1", "a long message that says what went wrong"],
      ["counter_redis", "12", ""],
    ];
    expect(table(screen(Number.POSITIVE_INFINITY), columns, rows)).toBe(
      [
        "NAME            N  MESSAGE",
        "web             1  a long message that says what went wrong",
        "counter_redis  12",
        "",
      ].join("\n"),
    );
  });

  it("cuts the widest column that may shrink", () => {
    const rows: Row[] = [["counter_redis", "12", "a long message that says what went wrong"]];
    expect(table(screen(40), columns, rows)).toBe(
      ["NAME            N  MESSAGE", "counter_redis  12  a long message that …", ""].join("\n"),
    );
  });

  it("leaves out what may be, in that order, before it cuts what a column needs", () => {
    const row: Row = ["counter_redis.1", "0123456789", "cannot be started: no such image"];
    const some = [
      { title: "NAME", value: (cells: Row) => cells[0], shrinkTo: 4 },
      { title: "ID", value: (cells: Row) => cells[1], drop: 1 },
      { title: "IMAGE", value: () => "redis:7", drop: 2 },
      { title: "MESSAGE", value: (cells: Row) => cells[2], shrinkTo: 5, wish: 20 },
    ];
    const titles = (width: number) => table(screen(width), some, [row]).split("\n")[0]?.trim().split(/ +/);
    expect(titles(58)).toEqual(["NAME", "ID", "IMAGE", "MESSAGE"]);
    expect(titles(57)).toEqual(["NAME", "IMAGE", "MESSAGE"]);
    expect(titles(45)).toEqual(["NAME", "MESSAGE"]);
    expect(table(screen(40), some, [row])).toContain("counter_redis.1  cannot be started: no …");
  });

  it("never wraps, whatever the rows hold", () => {
    const text = fc.string({ maxLength: 60 });
    fc.assert(
      fc.property(fc.array(fc.tuple(text, text, text)), fc.integer({ min: 10, max: 120 }), (rows, width) => {
        const lines = table(screen(width), columns, rows).split("\n");
        expect(lines).toHaveLength(rows.length + 2);
        for (const line of lines) expect(Array.from(line).length).toBeLessThanOrEqual(width);
      }),
      { seed: 1 },
    );
  });

  it("never wraps with colours either, and leaves none on", () => {
    const plain = [
      { title: "NAME", value: (row: readonly string[]) => row[0] ?? "", style: () => "green" as const },
      { title: "STATE", value: (row: readonly string[]) => row[1] ?? "" },
    ];
    const rows = [["counter_redis", "running"]];
    const sgr = String.fromCharCode(27);
    for (let columns = 5; columns < 30; columns++) {
      const bare = table(screen(columns), plain, rows);
      const painted = table({ ...screen(columns), colours: true }, plain, rows);
      expect(painted.replaceAll(new RegExp(`${sgr}\\[\\d+m`, "g"), "")).toBe(bare);
      for (const line of painted.split("\n")) expect((line.split(sgr).length - 1) % 2).toBe(0);
    }
  });

  it("leaves out an empty column before it cuts others", () => {
    const some = [
      { title: "NAME", value: (row: readonly string[]) => row[0] ?? "" },
      { title: "MESSAGE", value: (row: readonly string[]) => row[1] ?? "" },
    ];
    expect(table(screen(8), some, [["host-1", ""]])).toBe("NAME\nhost-1\n");
    expect(table(screen(20), some, [["host-1", ""]])).toBe("NAME    MESSAGE\nhost-1\n");
  });

  it("lets no control character of somebody else's text through", () => {
    expect(table(screen(80), columns, [["a\u001b[31mb", "1\n2", "c\rd"]])).toBe(
      "NAME      N  MESSAGE\na[31mb  1 2  c d\n",
    );
  });
});

describe("Progress", () => {
  it("prints a line once when it changes, where it is no terminal", () => {
    const out = screen(Number.POSITIVE_INFINITY);
    const progress = new Progress(out);
    progress.show(new Map([["web", "web 0/1"]]));
    progress.show(new Map([["web", "web 0/1"]]));
    progress.show(new Map([["web", "web 1/1"]]));
    expect(out.text()).toBe("web 0/1\nweb 1/1\n");
  });

  it("redraws its lines in place on a terminal, each cut to it", () => {
    const out = screen(10);
    const progress = new Progress(out);
    progress.show(new Map([["web", "web 0/1 pulling"]]));
    progress.show(new Map([["web", "web 1/1"]]));
    expect(out.text()).toBe("\u001b[2Kweb 0/1 …\n\u001b[1A\u001b[2Kweb 1/1\n");
  });
});
