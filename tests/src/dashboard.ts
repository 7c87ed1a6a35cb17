// The dashboard's schema: Grafana's types, made exact for what stands in a file as JSON.
import type { GraphFieldConfig } from "@grafana/grafana-foundation-sdk/common";
import type * as dashboard from "@grafana/grafana-foundation-sdk/dashboard";
import type { Dataquery } from "@grafana/grafana-foundation-sdk/prometheus";
import type { Options as StatOptions } from "@grafana/grafana-foundation-sdk/stat";
import type { Options as TimeseriesOptions } from "@grafana/grafana-foundation-sdk/timeseries";
import type * as units from "@grafana/grafana-foundation-sdk/units";

/** JSON of a type: a word in place of an enumeration's member, and no functions. */
type Json<T> = T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends readonly (infer E)[] ? Json<E>[]
  : T extends object ? { [K in keyof T as T[K] extends Function ? never : K]: Json<T[K]> }
  : T;

/** Units that Grafana can write. */
type Unit = (typeof units)[keyof typeof units];

type FieldConfig<Custom> = Omit<Json<dashboard.FieldConfig>, "unit" | "custom"> & { unit: Unit; custom?: Json<Custom> };

/** Panel of one kind, with its own options and Prometheus' queries, which Grafana's general type leaves open. */
type Panel<Kind extends string, Options, Custom> =
  & Omit<Json<dashboard.Panel>, "type" | "options" | "fieldConfig" | "targets">
  & {
    type: Kind;
    id: number;
    title: string;
    gridPos: dashboard.GridPos;
    targets: (Json<Dataquery> & { refId: string })[];
    options: Json<Options>;
    fieldConfig: { defaults: FieldConfig<Custom>; overrides: Json<dashboard.FieldConfigSource["overrides"]> };
  };

type Row = Omit<Json<dashboard.RowPanel>, "type" | "panels"> & { type: "row"; panels: [] };

export type Dashboard = Omit<Json<dashboard.Dashboard>, "panels"> & {
  panels: (Row | Panel<"stat", StatOptions, never> | Panel<"timeseries", TimeseriesOptions, GraphFieldConfig>)[];
};
