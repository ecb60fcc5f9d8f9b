// Numbers and moments as people say them.

/** Bytes: `12.4 MiB`. */
export function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1).replace('.0', '')} ${units[unit]}`;
}

/** How long ago: `4m12s`. */
export function ago(moment, now = Date.now()) {
  const seconds = Math.max(0, Math.floor((now - Date.parse(moment)) / 1000));
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days > 0) return `${days}d${hours}h`;
  if (hours > 0) return `${hours}h${minutes}m`;
  if (minutes > 0) return `${minutes}m${seconds % 60}s`;
  return `${seconds}s`;
}

/** Processor time: `0.25`. */
export const processors = (millis) => (millis / 1000).toFixed(millis < 10 ? 3 : 2);

export const states = {
  ready: 'Ready', unready: 'Not ready', absent: 'Absent', stopping: 'Stopping', failed: 'Failed', ended: 'Ended',
};
