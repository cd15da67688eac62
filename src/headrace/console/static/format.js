// Numbers and times as people read them.

const plain = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const small = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

export const NONE = "–";

export function seconds(value) {
  if (value == null) return NONE;
  if (value < 0.0095) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  return value < 99.5 ? `${value.toFixed(value < 9.95 ? 2 : 1)} s` : `${plain.format(Math.round(value))} s`;
}

export function dollars(value) {
  if (!value) return "$0";
  return `$${value < 0.01 ? small.format(value) : value.toFixed(value < 1 ? 4 : 2)}`;
}

export const count = (value) => plain.format(value ?? 0);
export const short = (value) => (value < 10000 ? plain.format(value) : compact.format(value));

// Speed of the stream from the mean time between tokens.
export const speed = (itl) => (itl ? `${(1 / itl).toFixed(1 / itl < 10 ? 1 : 0)} tok/s` : NONE);

export function time(unix) {
  const date = new Date(unix * 1000);
  const today = new Date().toDateString() === date.toDateString();
  return today ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`;
}
