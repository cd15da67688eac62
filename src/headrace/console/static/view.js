// htm bound to preact: markup as template strings. All values become text nodes, never markup.
import htm from "htm";
import { h } from "preact";

export const html = htm.bind(h);
