// A burst: a quiet phase, then thousands of browsers within a second, then a second quiet phase.
//
//   BASE_URL=http://localhost:8080   the server
//   CLIENTS=3000                     number of browsers in the burst; each opens a connection and sends one report
//   SPREAD_S=1                       duration of the burst; each browser sends at a random time within it
//   QUIET_S=8                        duration of each quiet phase
//   QUIET_RATE=10                    reports per second in the quiet phases
//   P95_MS=2000 P99_MS=3000          limits for report_time in the burst

import { sleep } from 'k6';
import exec from 'k6/execution';

import { report, send } from './reports.js';

const CLIENTS = Number(__ENV.CLIENTS || 3000);
const SPREAD_S = Number(__ENV.SPREAD_S || 1);
const QUIET_S = Number(__ENV.QUIET_S || 8);
const QUIET_RATE = Number(__ENV.QUIET_RATE || 10);
// The time to generate the reports before the burst, so that k6 only connects and sends during the burst.
const LEAD_S = 3;
const BURST_AT_S = QUIET_S + 1 + LEAD_S; // one second for the last answers of the quiet phase
const AFTER_AT_S = BURST_AT_S + SPREAD_S + 2; // time for k6 to catch up

const quiet = {
  executor: 'constant-arrival-rate',
  exec: 'visit',
  rate: QUIET_RATE,
  timeUnit: '1s',
  duration: `${QUIET_S}s`,
  preAllocatedVUs: QUIET_RATE * 2,
  maxVUs: QUIET_RATE * 2,
  gracefulStop: '15s', // longer than the timeout of a request, so that k6 aborts none
};

export const options = {
  scenarios: {
    before: quiet,
    burst: {
      // Each virtual user runs once, so each report has its own connection. If k6 is late, no report is omitted.
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
