// A burst: a quiet site, then thousands of browsers within a second, then quiet again.
//
//   BASE_URL=http://localhost:8080   the server
//   CLIENTS=3000                     browsers in the burst, each with a new connection and one report
//   SPREAD_S=1                       they come at random within this time
//   QUIET_S=8                        how long it is quiet, before and after
//   QUIET_RATE=10                    reports a second while it is
//   P95_MS=2000 P99_MS=3000          the limits for report_time in the burst

import { sleep } from 'k6';
import exec from 'k6/execution';

import { report, send } from './reports.js';

const CLIENTS = Number(__ENV.CLIENTS || 3000);
const SPREAD_S = Number(__ENV.SPREAD_S || 1);
const QUIET_S = Number(__ENV.QUIET_S || 8);
const QUIET_RATE = Number(__ENV.QUIET_RATE || 10);
// The browsers' reports are made ahead, so that in the burst k6 has only to connect and send.
const LEAD_S = 3;
const BURST_AT_S = QUIET_S + 1 + LEAD_S; // a second for the last answers before
const AFTER_AT_S = BURST_AT_S + SPREAD_S + 2; // by then k6 itself should have caught up

const quiet = {
  executor: 'constant-arrival-rate',
  exec: 'visit',
  rate: QUIET_RATE,
  timeUnit: '1s',
  duration: `${QUIET_S}s`,
  preAllocatedVUs: QUIET_RATE * 2,
  maxVUs: QUIET_RATE * 2,
  gracefulStop: '15s', // longer than a request may take: none is broken off
};

export const options = {
  scenarios: {
    before: quiet,
    burst: {
      // Each virtual user once, so each report has a connection of its own; none is left out if k6 is late.
      executor: 'per-vu-iterations',
      exec: 'burst',
      vus: CLIENTS,
      iterations: 1,
      startTime: `${BURST_AT_S - LEAD_S}s`,
      maxDuration: `${LEAD_S + SPREAD_S + 15}s`,
    },
    after: { ...quiet, startTime: `${AFTER_AT_S}s` },
  },
  thresholds: {
    http_req_failed: ['rate==0'],
    checks: ['rate==1'],
    dropped_iterations: ['count==0'],
    'acknowledged{scenario:burst}': [`count==${CLIENTS}`],
    'report_time{scenario:before}': ['p(95)<100'],
    'report_time{scenario:burst}': [`p(95)<${__ENV.P95_MS || 2000}`, `p(99)<${__ENV.P99_MS || 3000}`],
    'report_time{scenario:after}': ['p(95)<100'],
  },
  summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
};

export function visit() {
  send(report(Date.now()));
}

export function burst() {
  const at_ms = Math.floor(exec.scenario.startTime + (LEAD_S + Math.random() * SPREAD_S) * 1000);
  const made = report(at_ms);
  sleep(Math.max(0, at_ms - Date.now()) / 1000);
  send(made);
}
